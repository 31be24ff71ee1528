"""The WireGuard device: its observed state, its desired state, and the steps between the two.

device    the protocol that all three devices implement, and its values plan      (pure) the diff: observed state +
desired config → steps kernel    the kernel's WireGuard, through netlink userspace wireguard-go, through its socket
(text of that socket: uapi, pure) fake      in memory, for tests open      picks the device for this machine conf
wg-quick files for devices that meshray does not run
"""
