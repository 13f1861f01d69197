# In dom0: makes a ramdisk with a shell script as its init, which does the work of stubdm-run, and has the agent
# measure starts with both. For `cargo xtask bench start`.
set -e
shell=/tmp/shell-stub
rm -rf $shell; mkdir -p $shell/usr/bin $shell/usr/lib/x86_64-linux-gnu
cp /usr/bin/busybox $shell/usr/bin/
for name in sh mount mkdir mkfifo insmod sort sleep poweroff grep cat ls losetup chroot; do ln -s busybox $shell/usr/bin/$name; done
cp -L /usr/bin/xenstore-read /usr/bin/xenstore-list $shell/usr/bin/
cp -L /usr/lib/xen-*/bin/vchan-socket-proxy $shell/usr/bin/vchan-socket-proxy
for lib in $(find / -xdev -name 'libxen*.so*' 2>/dev/null); do
    mkdir -p $shell/$(dirname $lib); cp -a $lib $shell/$lib
done
# The ramdisk has none: QEMU's are in its compressed file system.
mkdir -p $shell/usr/lib64
cp -L /lib64/ld-linux-x86-64.so.2 $shell/usr/lib64/
cp -L $(find / -xdev -name libc.so.6 2>/dev/null | head -n 1) $shell/usr/lib/x86_64-linux-gnu/
cat > $shell/init <<'INIT'
#!/usr/bin/sh
export PATH=/usr/bin
mount -t proc proc /proc
read -r began _ < /proc/uptime
mount -t devtmpfs devtmpfs /dev
insmod /packed/loop.ko max_loop=1
insmod /packed/squashfs.ko
losetup -r /dev/loop0 /packed/root.squashfs
root=/packed/root
mount -t squashfs -o ro /dev/loop0 $root
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
# The network's modules only where there is a card, as the other init does.
while read -r module; do
    options=
    case $module in
        *privcmd*) options=unrestricted=1 ;;
        *netfront*|*llc*|*stp*|*bridge*|*tun*) continue ;;
    esac
    insmod "$root/lib/modules/$module" $options
done < $root/lib/modules/order
mount -t xenfs xenfs /proc/xen
for folder in proc sys dev run tmp; do mount -o rbind /$folder $root/$folder; done
echo 1 > /proc/sys/vm/overcommit_memory
guest=$(xenstore-read target)
vm=$(xenstore-read "/local/domain/$guest/vm")
set --
for node in $(xenstore-list "$vm/image/dm-argv" | sort -n); do
    set -- "$@" "$(xenstore-read "$vm/image/dm-argv/$node")"
done
for word; do
    case $word in
        file=/dev/xvd*) disk=${word#file=}; disk=${disk%%,*}; while [ ! -e "$disk" ]; do sleep 0.01; done ;;
    esac
done
mkdir -p /run/q
mkfifo /run/q/own.in /run/q/own.out
read -r qemu _ < /proc/uptime
chroot $root /usr/libexec/xen-qemu-system-i386 -S -chardev pipe,id=own,path=/run/q/own -mon chardev=own,mode=control \
    -chardev socket,id=q,path=/run/q/toolstack,server=on,wait=off -mon chardev=q,mode=control "$@" &
exec 3<>/run/q/own.in 4<>/run/q/own.out
read -r greeting <&4
echo '{"execute":"qmp_capabilities"}' >&3
read -r answer <&4
vchan-socket-proxy --mode=server 0 "device-model/$guest/qmp-vchan" /run/q/toolstack &
while ! xenstore-read "device-model/$guest/qmp-vchan/event-channel" > /dev/null 2>&1; do sleep 0.01; done
echo '{"execute":"cont"}' >&3
while [ "$(xenstore-read "device-model/$guest/state" 2> /dev/null)" != running ]; do sleep 0.01; done
read -r now _ < /proc/uptime
echo "shell init: $began $qemu $now"
wait
poweroff -f
INIT
chmod +x $shell/init
cp /boot/stub.img /tmp/shell-stub.img
(cd $shell; find . | cpio -o -H newc 2> /dev/null >> /tmp/shell-stub.img)
exec xen-testbed-agent bench-start /tmp/shell-stub.img
