//go:build tools

package main

import _ "golang.zx2c4.com/wireguard"
