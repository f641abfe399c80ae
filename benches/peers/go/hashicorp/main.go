// A bench node of hashicorp/raft with its default settings; --log wal or boltdb.
package main

import (
	"flag"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"raftify_ffi/peers/load"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

const timeout = 10 * time.Second

// Entries that the library keeps in memory for followers, as its documentation suggests.
const cached = 512

// machine is the state as the library wants it.
type machine struct{ *load.State }

func (m machine) Apply(entry *raft.Log) any {
	m.Put(entry.Data)
	return nil
}

func (m machine) Snapshot() (raft.FSMSnapshot, error) {
	return snapshot{m.Copy()}, nil
}

func (m machine) Restore(from io.ReadCloser) error {
	defer from.Close()
	_, err := m.ReadFrom(from)
	return err
}

type snapshot struct{ *load.State }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.WriteTo(sink); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (snapshot) Release() {}

type node struct {
	machine
	raft *raft.Raft
	ids  map[raft.ServerAddress]int
}

func (n node) Leader() int {
	addr, _ := n.raft.LeaderWithID()
	return n.ids[addr]
}

func (n node) Propose(command []byte) error {
	return n.raft.Apply(command, timeout).Error()
}

// store is what both of the library's logs are.
type store interface {
	raft.LogStore
	raft.StableStore
}

func open(kind, dir string) (store, error) {
	if kind == "boltdb" {
		return boltdb.New(boltdb.Options{Path: filepath.Join(dir, "raft.db")})
	}
	dir = filepath.Join(dir, "wal")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return wal.Open(dir)
}

func main() {
	kind := flag.String("log", "wal", "wal or boltdb")
	options := load.Parse()
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(strconv.Itoa(options.ID))
	config.Logger = logger
	self := options.Peers[options.ID]
	stable, err := open(*kind, options.Dir)
	must(err)
	entries, err := raft.NewLogCache(cached, stable)
	must(err)
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(options.Dir, 2, logger)
	must(err)
	transport, err := raft.NewTCPTransportWithLogger(self, nil, len(options.Peers), timeout, logger)
	must(err)

	n := node{machine: machine{load.NewState()}, ids: map[raft.ServerAddress]int{}}
	var members raft.Configuration
	for id, addr := range options.Peers {
		n.ids[raft.ServerAddress(addr)] = id
		member := raft.Server{ID: raft.ServerID(strconv.Itoa(id)), Address: raft.ServerAddress(addr)}
		members.Servers = append(members.Servers, member)
	}
	must(raft.BootstrapCluster(config, entries, stable, snapshots, transport, members))
	n.raft, err = raft.NewRaft(config, n.machine, entries, stable, snapshots, transport)
	must(err)
	load.Serve(options.ID, n)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
