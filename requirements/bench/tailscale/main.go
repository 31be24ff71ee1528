// A control server for the benchmark: Tailscale's own test server. All nodes belong to one user. A node does not start
// before it has a relay, so there is one. It also says from which address a node's packets came (STUN).
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const stunPort = 3478

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: control ADDRESS PORT")
	}
	address, port := os.Args[1], os.Args[2]
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		log.Fatal(err)
	}
	relay := httptest.NewUnstartedServer(derpserver.Handler(derpserver.New(key.NewNode(), logger.Discard)))
	relay.Listener.Close()
	relay.Listener = listener
	relay.StartTLS()
	go func() {
		log.Fatal(stunserver.New(context.Background()).ListenAndServe(net.JoinHostPort(address, strconv.Itoa(stunPort))))
	}()
	node := &tailcfg.DERPNode{
		Name:             "bench",
		RegionID:         1,
		HostName:         address,
		IPv4:             address,
		IPv6:             "none",
		STUNPort:         stunPort,
		DERPPort:         listener.Addr().(*net.TCPAddr).Port,
		InsecureForTests: true,
	}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "bench", Nodes: []*tailcfg.DERPNode{node}}
	server := &testcontrol.Server{
		ExplicitBaseURL:  "http://" + net.JoinHostPort(address, port),
		DERPMap:          &tailcfg.DERPMap{OmitDefaultRegions: true, Regions: map[int]*tailcfg.DERPRegion{1: region}},
		AllNodesSameUser: true,
		AllOnline:        true,
		Logf:             logger.Discard,
	}
	log.Fatal(http.ListenAndServe(net.JoinHostPort(address, port), server))
}
