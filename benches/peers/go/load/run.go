package load

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// How long the last proposals of a run may take to come back.
const drain = 20 * time.Second

const (
	warming int32 = iota
	measuring
	over
)

// worker keeps one proposal in flight.
type worker struct {
	latencies []time.Duration
	failed    int
	why       string
}

// run is one workload: warm-up, window, drain. Only what completes inside the window counts.
type run struct {
	propose  func([]byte) error
	commands [][]byte
	next     atomic.Uint64
	phase    atomic.Int32
}

func newRun(payload int, propose func([]byte) error) *run {
	keys := 10_000
	if payload > 4096 {
		// The state stays at 16 MiB or below, whatever the payload.
		keys = max(1, min(1024, (16<<20)/payload))
	}
	value := make([]byte, payload-8)
	rand.Read(value)
	r := &run{propose: propose, commands: make([][]byte, keys)}
	for key := range r.commands {
		r.commands[key] = append(binary.BigEndian.AppendUint64(nil, uint64(key)), value...)
	}
	return r
}

func (r *run) work(w *worker) {
	for r.phase.Load() != over {
		command := r.commands[r.next.Add(1)%uint64(len(r.commands))]
		begun := time.Now()
		err := r.propose(command)
		took := time.Since(begun)
		if err != nil {
			w.why = err.Error()
			if r.phase.Load() == measuring {
				w.failed++
			}
			// A refusal returns at once: without a pause this would spin.
			time.Sleep(2 * time.Millisecond)
		} else if r.phase.Load() == measuring {
			w.latencies = append(w.latencies, took)
		}
	}
}

func (r *run) measure(inflight int, window, warmup time.Duration) map[string]any {
	workers := make([]worker, inflight)
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() { r.work(&workers[i]) })
	}
	time.Sleep(warmup)
	r.phase.Store(measuring)
	say("MEASURE")
	begun := time.Now()
	time.Sleep(window)
	r.phase.Store(over)
	took := time.Since(begun)
	say("END")
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(drain):
		// Its workers may still write what is read here: no figures of it.
		return map[string]any{"n": 0, "errors": inflight, "secs": took.Seconds(), "drained": false, "err_sample": "the last proposals did not come back"}
	}
	var all []time.Duration
	failed, why := 0, ""
	for _, w := range workers {
		all = append(all, w.latencies...)
		failed += w.failed
		if w.why != "" {
			why = w.why
		}
	}
	slices.Sort(all)
	quantile := func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[min(len(all)-1, int(q*float64(len(all))))].Seconds() * 1e3
	}
	return map[string]any{
		"n": len(all), "errors": failed, "secs": took.Seconds(), "drained": true, "err_sample": why,
		"p50_ms": quantile(.5), "p99_ms": quantile(.99), "max_ms": quantile(1),
	}
}
