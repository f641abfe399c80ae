package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"sync"
)

// State is the replicated state: an 8-byte key to a value. Equal on all nodes when a run is over.
type State struct {
	lock    sync.Mutex
	values  map[uint64][]byte
	applied uint64
}

func NewState() *State {
	return &State{values: map[uint64][]byte{}}
}

// Put applies one command.
func (s *State) Put(command []byte) {
	s.lock.Lock()
	s.values[binary.BigEndian.Uint64(command)] = command[8:]
	s.applied++
	s.lock.Unlock()
}

// Copy is the state of this moment; the values themselves are never written again.
func (s *State) Copy() *State {
	s.lock.Lock()
	defer s.lock.Unlock()
	return &State{values: maps.Clone(s.values), applied: s.applied}
}

// WriteTo writes the number applied, then each key, length and value. Of a Copy: nobody else may write to it meanwhile.
func (s *State) WriteTo(to io.Writer) (int64, error) {
	var out bytes.Buffer
	out.Write(binary.BigEndian.AppendUint64(nil, s.applied))
	for key, value := range s.values {
		out.Write(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, key), uint32(len(value))))
		out.Write(value)
	}
	return out.WriteTo(to)
}

// ReadFrom takes what WriteTo wrote in place of what was there.
func (s *State) ReadFrom(from io.Reader) (int64, error) {
	all, err := io.ReadAll(from)
	if err != nil {
		return int64(len(all)), err
	}
	if len(all) < 8 {
		return int64(len(all)), errors.New("no state: it is too short")
	}
	values, rest := map[uint64][]byte{}, all[8:]
	for len(rest) > 0 {
		if len(rest) < 12 || len(rest)-12 < int(binary.BigEndian.Uint32(rest[8:])) {
			return int64(len(all)), errors.New("no state: it ends within a value")
		}
		end := 12 + int(binary.BigEndian.Uint32(rest[8:]))
		values[binary.BigEndian.Uint64(rest)] = rest[12:end:end]
		rest = rest[end:]
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.values, s.applied = values, binary.BigEndian.Uint64(all)
	return int64(len(all)), nil
}

// Facts are the answer to STATE.
func (s *State) Facts() map[string]any {
	s.lock.Lock()
	defer s.lock.Unlock()
	digest := crc32.NewIEEE()
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		digest.Write(binary.BigEndian.AppendUint64(nil, key))
		digest.Write(s.values[key])
	}
	return map[string]any{"applied": s.applied, "keys": len(s.values), "digest": digest.Sum32()}
}
