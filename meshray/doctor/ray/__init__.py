"""Ray on a node, and the ports of the others."""
