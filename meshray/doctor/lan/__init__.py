"""The networks to which this machine is attached: whether another machine there claims an address that it needs."""
