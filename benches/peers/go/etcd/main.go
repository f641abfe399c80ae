// A bench node of etcd: its server in this process, asked by the client that it offers for that, without a socket between.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"raftify_ffi/peers/load"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

const timeout = 10 * time.Second

type node struct {
	server *embed.Etcd
	client *clientv3.Client
}

func name(id int) string {
	return "node" + strconv.Itoa(id)
}

func (n node) Leader() int {
	leader := n.server.Server.Leader()
	for _, member := range n.server.Server.Cluster().Members() {
		if member.ID == leader {
			id, _ := strconv.Atoi(strings.TrimPrefix(member.Name, "node"))
			return id
		}
	}
	return 0
}

func (n node) Propose(command []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := n.client.Put(ctx, string(command[:8]), string(command[8:]))
	return err
}

func (n node) Facts() map[string]any {
	hash, revision, err := n.server.Server.KV().HashStorage().HashByRev(0)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	return map[string]any{"applied": revision, "digest": hash.Hash}
}

func local(addr string) []url.URL {
	return []url.URL{{Scheme: "http", Host: addr}}
}

func main() {
	options := load.Parse()
	config := embed.NewConfig()
	config.Name, config.Dir, config.LogLevel = name(options.ID), options.Dir, "error"
	config.QuotaBackendBytes = 8 << 30
	peer := local(options.Peers[options.ID])
	config.ListenPeerUrls, config.AdvertisePeerUrls = peer, peer
	// Nobody comes to the clients' port: any will do.
	client := local(free())
	config.ListenClientUrls, config.AdvertiseClientUrls = client, client
	var members []string
	for id, addr := range options.Peers {
		members = append(members, fmt.Sprintf("%s=http://%s", name(id), addr))
	}
	config.InitialCluster = strings.Join(members, ",")
	server, err := embed.StartEtcd(config)
	if err != nil {
		log.Fatal(err)
	}
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(time.Minute):
		log.Fatal("etcd was not ready within a minute")
	}
	load.Serve(options.ID, node{server, v3client.New(server.Server)})
}

func free() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
