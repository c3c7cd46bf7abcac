package main

import (
	"reflect"
	"testing"

	resync "doppel/sync"
)

// FuzzParted reads any parted.json: what is read can be written, and comes back,
// paths that are not UTF-8 too; and none leads out of the tree.
func FuzzParted(f *testing.F) {
	b, err := encodeParted(partedState{Base: "head@1", Digest: "sha256:1", Begun: []begun{{Image: "head@2", Digest: "sha256:2"}}, Own: []ownState{
		{Own: resync.Own{Path: "etc/motd", How: resync.WasChanged, Both: true}}, {Own: resync.Own{Path: "srv/\xffname", How: resync.WasAdded}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"digest":"d","own":[{"path":"../etc","how":"added"}]}`))
	f.Add([]byte(`{"digest":"d","known":true,"own":[{"raw":"Ly4u","how":"removed"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeParted(b)
		if err != nil {
			return
		}
		one, err := encodeParted(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeParted(one)
		if err != nil || !reflect.DeepEqual(s.list(), back.list()) || back.Digest != s.Digest || back.Known != s.Known {
			t.Errorf("%s comes back as %+v, %v", one, back, err)
		}
	})
}
