"""The other nodes' addresses outside the overlay: the routes and rules of this machine that concern them."""
