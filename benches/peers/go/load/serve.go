// Package load is the driver's side of the bench protocol (benches/README.md), for nodes in Go: it reads commands on stdin, keeps proposals in
// flight, and reports what it measured.
package load

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"
)

// Node is what is measured.
type Node interface {
	// Leader is its id; 0: nobody, or not known.
	Leader() int
	// Propose returns once the command is applied here. Called by many goroutines.
	Propose(command []byte) error
	// Facts are equal on all nodes whose state is.
	Facts() map[string]any
}

// Options are what every node is started with.
type Options struct {
	ID int
	// Peers are the addresses of all nodes, by id.
	Peers map[int]string
	Dir   string
}

// Parse reads the command line; flags of the driver's own have to be defined before.
func Parse() Options {
	options := Options{Peers: map[int]string{}}
	flag.IntVar(&options.ID, "id", 0, "of this node")
	peers := flag.String("peers", "", "1=host:port,2=host:port,…")
	flag.StringVar(&options.Dir, "dir", "", "of this node alone")
	flag.Parse()
	for _, peer := range strings.Split(*peers, ",") {
		id, addr, _ := strings.Cut(peer, "=")
		number, err := strconv.Atoi(id)
		if err != nil || addr == "" {
			log.Fatalf("--peers %s: not 1=host:port,2=host:port,…", *peers)
		}
		options.Peers[number] = addr
	}
	if options.Peers[options.ID] == "" || options.Dir == "" {
		log.Fatal("--dir, and --id that is among --peers, are needed")
	}
	return options
}

func say(line string) {
	// One write a line: the reader takes the time of its arrival.
	os.Stdout.WriteString(line + "\n")
}

func sayJSON(value map[string]any) {
	line, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	say(string(line))
}

// Serve answers commands until QUIT or the end of input.
func Serve(id int, node Node) {
	for node.Leader() == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	say(fmt.Sprintf("READY %d", node.Leader()))
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 1 && words[0] == "QUIT":
			return
		case len(words) == 1 && words[0] == "STATE":
			sayJSON(node.Facts())
		case len(words) == 5 && words[0] == "BENCH":
			if leader := node.Leader(); leader != id {
				sayJSON(map[string]any{"error": "not leader", "leader": leader})
				continue
			}
			var numbers [4]int
			for i, word := range words[1:] {
				number, err := strconv.Atoi(word)
				if err != nil {
					log.Fatalf("BENCH: %s is no number", word)
				}
				numbers[i] = number
			}
			run := newRun(numbers[0], node.Propose)
			sayJSON(run.measure(numbers[1], time.Duration(numbers[2])*time.Second, time.Duration(numbers[3])*time.Second))
		}
	}
}
