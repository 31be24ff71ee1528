// Takes the pass from the address's fragment, removes it from the address and the history, and sends it once.
"use strict";

const fragment = location.hash.slice(1);
if (fragment) {
  history.replaceState(null, "", "/enter");
  document.getElementById("pass").value = fragment.split(".")[0];
  document.getElementById("enter").submit();
}
