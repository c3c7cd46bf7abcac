# Changes the head whose tree is $1 as an administrator's day does: another
# kernel, a package, a user, a large file, deletions, a renamed tree.
cd "$1"
for kernel in boot/vmlinuz-*; do release=${kernel#boot/vmlinuz-}; done
new=6.1.0-99-cloud-amd64
cp "boot/vmlinuz-$release" "boot/vmlinuz-$new"
cp "boot/initrd.img-$release" "boot/initrd.img-$new"
cp -al "usr/lib/modules/$release" "usr/lib/modules/$new"
rm "boot/vmlinuz-$release" "boot/initrd.img-$release"
for link in vmlinuz initrd.img; do [ ! -L "$link" ] || ln -sf "boot/$link-$new" "$link"; done
rm -f vmlinuz.old initrd.img.old
mkdir -p tmp/package/DEBIAN tmp/package/usr/share/doppel-test
cat >tmp/package/DEBIAN/control <<END
Package: doppel-test
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: a package of the test
END
echo content >tmp/package/usr/share/doppel-test/file
chroot . dpkg-deb -b /tmp/package /tmp/doppel-test.deb
chroot . dpkg -i /tmp/doppel-test.deb
chroot . useradd -m -s /bin/bash alice
rm -r tmp/package tmp/doppel-test.deb
head -c 52428800 /dev/urandom >srv/large
rm -r srv/gone
mv srv/tree srv/renamed
printf '10.77.0.50\tstorage\n' >>etc/hosts
