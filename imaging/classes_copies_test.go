package imaging

import "testing"

// Copies of what is secret elsewhere: hashes of passwords, memory, doppel's own
// keys in a state directory that is not where it usually is.
func TestClassifyCopies(t *testing.T) {
	for path, want := range map[string]Class{
		"var/backups/shadow.bak":                  ClassHead,
		"var/backups/gshadow.bak":                 ClassHead,
		"etc/shadow.org":                          ClassHead,
		"etc/security/opasswd":                    ClassHead,
		"var/lib/sss/db/cache_example.ldb":        ClassHead,
		"var/lib/sss/secrets/secrets.ldb":         ClassHead,
		"var/lib/mysql/mysql/global_priv.MAD":     ClassHead,
		"var/lib/postgresql/15/main/base/1/1260":  ClassHead,
		"var/lib/systemd/coredump/core.slurmdbd":  ClassHead,
		"var/crash/x.crash":                       ClassHead,
		"var/lib/cloud/instance/user-data.txt":    ClassHead,
		"var/lib/cloud/instances/i/user-data.txt": ClassHead,
		"srv/doppel/keys/head.key":                ClassHead,
		"srv/doppel/keys/cluster.key":             ClassHead,
		"srv/doppel/keys/heartbeat.key":           ClassHead,
		"srv/doppel/keys/fence.sealed":            ClassHead,
		"srv/doppel/keys/ca.crt":                  ClassNone,
		"etc/shadow-maint/x":                      ClassNone,
		"etc/shadow":                              ClassCluster,
	} {
		if got, _ := Classify(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

// A swap file is the head's memory.
func TestDetectSwap(t *testing.T) {
	swap := make([]byte, 8192)
	copy(swap[4096-10:], "SWAPSPACE2")
	if !DetectSecret(swap) {
		t.Error("a swap file is nothing special")
	}
	copy(swap[4096-10:], "swapspace2")
	if DetectSecret(swap) || DetectSecret(swap[:4090]) {
		t.Error("any file is a swap file")
	}
}
