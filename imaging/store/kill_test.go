package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	killedStore = "DOPPEL_TEST_KILLED_STORE" // the directory a child is to write to
	killedSeed  = "DOPPEL_TEST_KILLED_SEED"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(killedStore); path != "" {
		if err := writeUntilKilled(path, os.Getenv(killedSeed)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeUntilKilled commits blocks without end, and tells on stdout of each set
// of chunks once Commit has said that it is durable.
func writeUntilKilled(path, seed string) error {
	ctx := context.Background()
	key, err := ReadKey(path + ".key")
	if err != nil {
		return err
	}
	d, err := OpenDir(path)
	if err != nil {
		return err
	}
	v, err := OpenVault(ctx, d, Keys{Cluster: &key}, nil)
	if err != nil {
		return err
	}
	w := v.NewWriter()
	for i := 0; ; i++ {
		chunk := killedChunk(fmt.Sprintf("%s-%d", seed, i))
		b, err := BuildBlock(Cluster, [][]byte{chunk})
		if err != nil {
			return err
		}
		if err := errors.Join(w.Add(ctx, b), w.Commit(ctx)); err != nil {
			return err
		}
		if _, err := PutBlob(ctx, d, KindManifest, chunk); err != nil {
			return err
		}
		fmt.Println(Sum(chunk).Hex())
	}
}

// killedChunk makes half a MiB that does not compress.
func killedChunk(name string) []byte {
	var seed [32]byte
	copy(seed[:], name)
	b := make([]byte, 512<<10)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// A process that is killed at any instant leaves every pack that was committed,
// and no file under a name that is not its digest.
func TestKill(t *testing.T) {
	path := t.TempDir() + "/store"
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteKey(path+".key", key); err != nil {
		t.Fatal(err)
	}
	committed := map[ID]bool{}
	for round := range 60 {
		for _, id := range killChild(t, path, round) {
			committed[id] = true
		}
		if entries, err := os.ReadDir(path + "/packs"); err == nil {
			for _, e := range entries {
				checkNamed(t, path+"/packs/"+e.Name())
			}
		}
	}
	if len(committed) == 0 {
		t.Fatal("no child committed anything: nothing was tested")
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range dirNames(t, d) {
		if isTemp(name) {
			t.Errorf("%s is left over", name)
		}
	}
	v := testVault(t, d, Keys{Cluster: &key})
	if hurt := v.Damaged(); len(hurt) != 0 {
		t.Errorf("damaged: %v", hurt)
	}
	if err := v.Verify(context.Background(), Chunks, func(f Fault) { t.Errorf("Verify: %v", f) }); err != nil {
		t.Error(err)
	}
	for id := range committed {
		b, err := v.Chunk(context.Background(), Ref{Cluster, id})
		if err != nil {
			t.Errorf("a committed chunk: %v", err)
		}
		if m, err := ReadBlob(context.Background(), d, KindManifest, id); err != nil || !bytes.Equal(b, m) {
			t.Errorf("a committed manifest: %v", err)
		}
	}
	t.Logf("%d chunks were committed before the kills", len(committed))
}

// killChild runs a child, kills it somewhere after its first words, and gives
// the chunks it told of.
func killChild(t *testing.T, path string, round int) []ID {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), killedStore+"="+path, fmt.Sprintf("%s=%d", killedSeed, round))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Some are killed early, while they open the store; most while they write.
	patience := time.Duration(rand.Int64N(int64(50 * time.Millisecond)))
	var ids []ID
	var death *time.Timer
	if round%4 == 0 {
		death = time.AfterFunc(patience, func() { cmd.Process.Kill() })
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		b, err := hex.DecodeString(lines.Text())
		if err != nil || len(b) != len(ID{}) {
			continue // cut by the kill
		}
		ids = append(ids, ID(b))
		if death == nil {
			death = time.AfterFunc(patience, func() { cmd.Process.Kill() })
		}
	}
	err = cmd.Wait()
	if death == nil {
		t.Fatalf("the child ended by itself: %v: %s", err, stderr.String())
	}
	death.Stop()
	if stderr.Len() > 0 {
		t.Errorf("the child: %s", stderr.String())
	}
	return ids
}

// checkNamed holds a file against its name, if it has one.
func checkNamed(t *testing.T, path string) {
	t.Helper()
	name := path[strings.LastIndexByte(path, '/')+1:]
	if isTemp(name) {
		return
	}
	id, ok := fileID(name)
	if !ok {
		t.Errorf("%s is no blob's name", name)
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if Sum(b) != id {
		t.Errorf("%s is not named by its digest", path)
	}
}
