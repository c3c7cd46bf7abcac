"""Builds the nastiest tree a root file system may be, in the directory given:
every kind of entry, and every way in which one can be hard to carry. Nothing
of doppel is used, so that it can be judged by it."""

import os
import random
import socket
import stat
import struct
import subprocess
import sys

os.umask(0)
os.chdir(sys.argv[1])
random.seed(7)


def put(path, data=b"x"):
    with open(path, "wb") as f:
        f.write(data)


def tool(*args):
    subprocess.run(args, check=True)


# Contents: empty, small, larger than a chunk, repeated, and zeros that are
# data and no hole.
os.mkdir("content")
put("content/empty", b"")
put("content/one")
noise = random.randbytes(3_000_000)
put("content/noise", noise)
put("content/shifted", b"shift" + noise)
put("content/repeated", noise[:300_000] * 7)
put("content/zeros", bytes(2_000_000))

# Holes.
os.mkdir("holes")


def sparse(path, size, *runs):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    for off, length in runs:
        os.pwrite(fd, random.randbytes(length), off)
    os.truncate(fd, size)
    os.close(fd)


M = 1 << 20
sparse("holes/start", 4 * M, (3 * M, M))
sparse("holes/middle", 8 * M, (0, M), (7 * M, M))
sparse("holes/end", 8 * M, (0, M))
sparse("holes/all", 64 * M)
sparse("holes/odd", 5 * M + 17, (M, 5000), (3 * M + 4096, 1), (5 * M, 17))
sparse("holes/many", 40 * M, *((i * M, 4096) for i in range(0, 40, 2)))
sparse("holes/far", (2 << 30) + 4096, (2 << 30, 4096))

# Names.
os.mkdir("names")
for name in (
    b"\xff\xfe not UTF-8 \x80", b"new\nline", b"back\\slash", b"\\012", b"-rf",
    b"--", b" ", b"tab\t", b"*", b"?", b"'", b'"', b"$HOME", b"...", b"..a",
    b"a" * 255, b"\x01\x7f", "\u00e4\u00f6\U0001f427".encode(), b".doppel-mine",
    b"a-b", b"a.b", b"con", b"%s%n", b"x ", b"\xe2\x28\xa1",
):
    put(b"names/" + name, name)
    os.mkdir(b"names/d" + name[:254])
    os.symlink(name, b"names/l" + name[:254])

# Order: what is in "a" sorts before "a-b" element by element, not by bytes.
for name in ("order", "order/a", "order/a b", "order/a!"):
    os.mkdir(name)
    put(name + "/x")
put("order/a-b")

# Modes.
os.mkdir("modes")
for mode in (0o0000, 0o0200, 0o0444, 0o0755, 0o4755, 0o2755, 0o6711, 0o7777, 0o1644, 0o2644):
    put("modes/f%04o" % mode)
    os.chmod("modes/f%04o" % mode, mode)
    os.mkdir("modes/d%04o" % mode)
    put("modes/d%04o/in" % mode)
    os.chmod("modes/d%04o" % mode, mode)
os.mkdir("modes/shut")
os.chmod("modes/shut", 0)

# Owners, with and without what a change of owner takes away.
os.mkdir("owners")
for uid, gid in ((1, 2), (12345, 54321), (65534, 65534), (4294967294, 4294967294)):
    for mode in (0o644, 0o6755):
        path = "owners/%d-%d-%o" % (uid, gid, mode)
        put(path)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    os.symlink("x", "owners/l%d" % uid)
    os.lchown("owners/l%d" % uid, uid, gid)
    os.mkdir("owners/d%d" % uid)
    os.chown("owners/d%d" % uid, uid, gid)

# Hard links: across directories, of symbolic links, of FIFOs, of devices.
for d in ("links", "links/a", "links/b", "links/b/c"):
    os.mkdir(d)
put("links/b/c/first", b"linked")
os.link("links/b/c/first", "links/a/second")
os.link("links/b/c/first", "links/third")
put("links/a/twin", b"linked")  # the same content, and another file
os.link("links/a/twin", "links/b/twin")
os.symlink("../nowhere", "links/a/soft")
os.link("links/a/soft", "links/b/soft", follow_symlinks=False)
os.mkfifo("links/a/fifo")
os.link("links/a/fifo", "links/b/fifo")
os.mknod("links/a/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.link("links/a/null", "links/b/null")
for i in range(300):
    os.link("links/third", "links/b/many%03d" % i)

# Kinds.
os.mkdir("kinds")
os.mkfifo("kinds/fifo", 0o620)
os.mknod("kinds/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("kinds/far", stat.S_IFCHR | 0o600, os.makedev(511, 262143))
os.mknod("kinds/loop", stat.S_IFBLK | 0o660, os.makedev(7, 4096))
s = socket.socket(socket.AF_UNIX)
s.bind("kinds/socket")
s.close()
os.chmod("kinds/socket", 0o3750)
os.symlink("/etc/passwd", "kinds/absolute")
os.symlink("../../../../../../../../etc/passwd", "kinds/up")
os.symlink("kinds", "kinds/loop-a")
os.symlink("x" * 1023, "kinds/long")
os.symlink(b"\xff\n", "kinds/strange")

# Extended attributes, ACLs and capabilities.
os.mkdir("attrs")
for name in ("user", "many", "empty", "binary", "trusted", "caps", "acl", "both"):
    put("attrs/" + name)
tool("setfattr", "-n", "user.comment", "-v", "hello", "attrs/user")
for i in range(40):
    tool("setfattr", "-n", "user.a%02d" % i, "-v", "v" * i, "attrs/many")
tool("setfattr", "-n", "user.nothing", "attrs/empty")
os.setxattr("attrs/binary", "user.bin", random.randbytes(1500))
os.setxattr("attrs/binary", b"user.\xff\xfe", b"\0\0")
tool("setfattr", "-n", "trusted.note", "-v", "root only", "attrs/trusted")
tool("setcap", "cap_net_raw,cap_net_admin+ep", "attrs/caps")
tool("setfacl", "-m", "u:1234:rwx,g:4321:r,m::rx", "attrs/acl")
os.chown("attrs/both", 77, 88)
os.chmod("attrs/both", 0o6755)
tool("setfacl", "-m", "u:1234:x", "attrs/both")
tool("setcap", "cap_setuid+p", "attrs/both")
tool("setfattr", "-n", "user.too", "-v", "1", "attrs/both")
os.symlink("user", "attrs/soft")
tool("setfattr", "-h", "-n", "trusted.soft", "-v", "on the link", "attrs/soft")
os.mkfifo("attrs/fifo")
tool("setfattr", "-h", "-n", "trusted.fifo", "-v", "1", "attrs/fifo")
os.mkdir("attrs/dir")
tool("setfattr", "-n", "user.dir", "-v", "1", "attrs/dir")
os.mkdir("attrs/inherit")
tool("setfacl", "-d", "-m", "u:1234:rwx,g::r,o::-", "attrs/inherit")
tool("setfacl", "-m", "g:4321:rx", "attrs/inherit")
put("attrs/inherit/child")
os.mkdir("attrs/inherit/dir")
put("attrs/inherit/plain")
tool("setfacl", "-b", "attrs/inherit/plain")  # though its directory hands one down

# A directory of many, and directories of nothing.
os.mkdir("many")
for i in range(10_000):
    put("many/%05d" % i, struct.pack("<I", i) * (i % 50))
os.makedirs("hollow/a/b/c")

# Far beyond PATH_MAX. Names at the bottom can be linked to the top only by
# going there.
top = os.open(".", os.O_RDONLY)
os.mkdir("deep")
os.chdir("deep")
for i in range(400):
    name = "level-%03d-of-a-long-way" % i
    os.mkdir(name)
    os.chdir(name)
    if i % 100 == 99:
        put("file", b"deep down")
        os.symlink("../file", "soft")
        os.link("file", "hard")
        os.mkfifo("fifo")
        tool("setfattr", "-n", "user.deep", "-v", str(i), "file")
        os.chmod("file", 0o4640)
bottom = os.open(".", os.O_RDONLY)
os.fchdir(top)
put("links/top", b"one file, far apart")
os.link("links/top", "bottom-of-it", dst_dir_fd=bottom)
os.close(bottom)

# Times, last: to the nanosecond, before 1970 and after 2038. The directories'
# own come after what is in them.
os.mkdir("times")
for seconds in (-2_000_000_000, -1, 0, 1, 1_700_000_000, 2**31 - 1, 2**31, 2**32 + 5, 9_000_000_000):
    for nano in (0, 1, 999_999_999):
        path = "times/%d.%d" % (seconds, nano)
        if nano == 0:
            put(path)
        elif nano == 1:
            os.symlink("x", path)
        else:
            os.mkdir(path)
        t = seconds * 10**9 + nano
        os.utime(path, ns=(t, t), follow_symlinks=False)

for where, dirs, files, fd in os.fwalk(b".", topdown=False):
    for name in dirs + files:
        if b"times" in where:
            continue
        t = random.randrange(-(10**18), 4 * 10**18)
        os.utime(name, ns=(t, t), dir_fd=fd, follow_symlinks=False)
os.utime(".", ns=(1_234_567_890_123_456_789,) * 2)
