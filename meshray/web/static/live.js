// The page works without this script. With it, the page follows the mesh, and its tables sort and search.
//
// The server sends events of JSON: {"at": unix s, "set": {element id: HTML}, "cells": [[row, column, class, text]…]}.
// In "set", "id/column" is a cell of the row with this id. "cells" are those of the matrix.
"use strict";

(() => {
  const SILENT_MS = 25000; // The server sends a heartbeat every 10 s.
  const RETRY_MS = [1000, 2000, 5000, 10000];
  const byId = (id) => document.getElementById(id);
  const live = byId("live"), liveText = byId("live-text"), pause = byId("pause");
  let clockAhead = 0; // The server's clock minus this machine's, seconds.

  // ---- times and durations

  const duration = (seconds) => {
    for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= length) return `${Math.round(seconds / length)} ${unit}`;
    }
    return `${Math.max(0, Math.round(seconds))} s`;
  };
  const age = () => {
    for (const time of document.querySelectorAll("time[data-since]")) {
      const text = duration(Date.now() / 1000 + clockAhead - Number(time.dataset.since));
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // ---- tables: sort and search

  const tables = new Map();

  class SortedTable {
    constructor(table) {
      this.table = table;
      this.column = -1;
      this.down = false;
      this.words = [];
      this.collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
      [...table.tHead.rows[0].cells].forEach((cell, column) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = cell.textContent.trim();
        button.addEventListener("click", () => this.sortBy(column));
        cell.replaceChildren(button);
      });
    }

    sortBy(column) {
      const heads = this.table.tHead.rows[0].cells;
      const numeric = heads[column].dataset.type === "number";
      this.down = this.column === column ? !this.down : numeric;
      this.column = column;
      [...heads].forEach((head, index) => {
        head.setAttribute("aria-sort", index !== column ? "none" : this.down ? "descending" : "ascending");
      });
      this.arrange();
    }

    arrange() {
      const body = this.table.tBodies[0];
      if (!body || this.column < 0) return;
      const numeric = this.table.tHead.rows[0].cells[this.column].dataset.type === "number";
      const value = (row) => row.cells[this.column] ? row.cells[this.column].dataset.value || "" : "";
      const compare = numeric
        ? (one, other) => Number(value(one)) - Number(value(other))
        : (one, other) => this.collator.compare(value(one), value(other));
      const rows = [...body.rows];
      const sorted = [...rows].sort((one, other) => (this.down ? -1 : 1) * compare(one, other));
      if (sorted.every((row, index) => row === rows[index])) return;
      const focused = document.activeElement;
      body.append(...sorted);
      if (focused && body.contains(focused)) focused.focus({ preventScroll: true });
    }

    search(text) {
      this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
      this.filter();
    }

    filter(only) {
      const body = this.table.tBodies[0];
      if (!body) return 0;
      let shown = 0;
      for (const row of only || body.rows) {
        const text = (row.dataset.text || "").toLowerCase();
        row.hidden = !this.words.every((word) => text.includes(word));
      }
      for (const row of body.rows) shown += row.hidden ? 0 : 1;
      const found = byId("found");
      const words = this.words.length ? `${shown} of ${body.rows.length}` : "";
      if (found && found.textContent !== words) found.textContent = words;
      return shown;
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) tables.set(table.id, new SortedTable(table));
  for (const box of document.querySelectorAll("[data-search]")) {
    const table = tables.get(box.dataset.search), input = box.querySelector("input");
    box.hidden = false;
    input.addEventListener("input", () => table.search(input.value));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { input.value = ""; table.search(""); }
    });
    if (input.value) table.search(input.value); // A browser restores it when the user goes back.
  }

  // ---- changes

  const apply = (change) => {
    clockAhead = change.at - Date.now() / 1000;
    const touched = new Set();
    const focused = document.activeElement;
    const owner = focused && focused.closest("[id]");
    const link = focused && focused.getAttribute && focused.getAttribute("href");
    for (const [key, html] of Object.entries(change.set || {})) {
      const [id, column] = key.split("/");
      const old = column ? byId(id) && byId(id).cells[column] : byId(id);
      if (!old) continue;
      const table = old.closest("table.sortable");
      if (table) touched.add(table.id);
      if (column) { old.outerHTML = html; continue; }
      const scroll = [...old.querySelectorAll("ul")].map((list) => list.scrollTop);
      old.outerHTML = html;
      const fresh = byId(id);
      if (fresh) [...fresh.querySelectorAll("ul")].forEach((list, index) => { list.scrollTop = scroll[index] || 0; });
    }
    const matrix = byId("matrix");
    for (const [row, column, kind, text] of change.cells || []) {
      const cell = matrix && matrix.tBodies[0].rows[row] && matrix.tBodies[0].rows[row].cells[column + 1];
      if (cell) { cell.className = kind; cell.textContent = text; }
    }
    for (const id of touched) { tables.get(id).filter(); tables.get(id).arrange(); }
    if (owner && focused && !focused.isConnected) {
      const again = byId(owner.id);
      const same = again && (again.getAttribute("href") === link ? again
        : [...again.querySelectorAll("a, button")].find((one) => one.getAttribute("href") === link));
      if (same) same.focus({ preventScroll: true });
    }
    age();
  };

  // ---- the connection

  let source = null, watch = 0, failures = 0, paused = false;

  const show = (state, text) => {
    live.dataset.state = state;
    if (liveText.textContent !== text) liveText.textContent = text;
  };
  const heard = () => {
    failures = 0;
    show("live", "Live");
    clearTimeout(watch);
    watch = setTimeout(retry, SILENT_MS);
  };
  const stop = () => {
    clearTimeout(watch);
    if (source) source.close();
    source = null;
  };
  const retry = () => {
    stop();
    if (paused) return;
    show("away", "Reconnecting…");
    watch = setTimeout(follow, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  };
  const follow = () => {
    stop();
    source = new EventSource(document.body.dataset.events);
    source.addEventListener("open", heard);
    source.addEventListener("beat", heard);
    source.addEventListener("change", (event) => { heard(); apply(JSON.parse(event.data)); });
    source.addEventListener("reload", () => { stop(); location.reload(); });
    source.addEventListener("error", retry);
  };

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) { stop(); show("still", "Paused"); } else { follow(); }
  });
  window.addEventListener("pagehide", stop);
  window.addEventListener("pageshow", (event) => { if (event.persisted && !paused) follow(); });
  setInterval(age, 5000);
  follow();
})();
