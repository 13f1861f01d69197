# The demo's job in dom0. Each part is announced; what it prints is shown and checked by the caller.
part() { echo "@@part $1"; }
# The names of all nodes but the empty folders that libxl keeps for later guests.
nodes() {
    xenstore-ls -f / | sed 's/ = .*//' | sort |
        grep -vxE '/libxl|/vm|/local/domain/0/(device-model|backend)(/[a-z]+(/[0-9]+)?)?'
}
# The processes that run a binary of ours.
ours() {
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe") in
        /usr/bin/stubdm-run) pid=${exe#/proc/}; echo "process ${pid%/exe}: $(tr '\0' ' ' < "${exe%exe}cmdline")" ;;
        esac
    done
}
# What a guest says on its console, up to the line that matches.
listen() {
    [ -p /tmp/keys ] || mkfifo /tmp/keys
    sleep 1000 > /tmp/keys &
    timeout 120 xl console "$1" < /tmp/keys | sed "/$2/q"
    kill $!
}
# Waits until domains and processes that are on their way out are gone, for as long as is reasonable.
settle() {
    for second in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(xl list | wc -l)" -gt 2 ] || [ -n "$(ours)" ] || break
        sleep 1
    done
}

part xen
xl info | grep -E '^(host|release|xen_version|virt_caps|total_memory)'
nodes > /tmp/before

part create
xl create /etc/xen/hvm.cfg
echo "xl create: status $?"

part list
xl list

part consoles
ours
for exe in /proc/[0-9]*/exe; do
    case $(tr '\0' ' ' < "${exe%exe}cmdline") in
    *'stubdm-run consoled '*) sed -n 's/^VmRSS:[ \t]*/its resident memory: /p' "${exe%exe}status" ;;
    esac
done
echo "processes in ps that have qemu in their line: $(ps | grep -c '[q]emu')"

part guest
listen hvm 'alive second=2'

part qmp
ours
echo "libxl asks (xl qemu-monitor-command hvm 'info status'):"
xl qemu-monitor-command hvm 'info status'
domid=$(xl domid hvm)
echo "a person asks (stubdm-run qmp $domid query-version):"
stubdm-run qmp "$domid" query-version

part save
xl save hvm /tmp/hvm.save > /tmp/save.out 2>&1
status=$?
# It counts its way up on one line.
tr '\r' '\n' < /tmp/save.out | grep -vE '^(xc: (Frames|End of stream).*| *)$'
rm /tmp/save.out
echo "xl save: status $status"
settle
xl list

part restore
xl restore /tmp/hvm.save
echo "xl restore: status $?"
rm /tmp/hvm.save
listen hvm 'alive second='

part network
cp /boot/guest.img /tmp/net.img
losetup /dev/loop7 /tmp/net.img
brctl addbr demo
# A port that is new forwards at once, not after 15 seconds of learning.
echo 0 > /sys/class/net/demo/bridge/forward_delay
ip link set demo address 02:00:00:77:00:01
ip addr add 10.77.1.1/24 dev demo
ip link set demo up
xl create /etc/xen/hvm.cfg 'name="net"' \
    'vif=["mac=00:16:3e:77:01:0a,bridge=demo,script=vif-testbed"]' \
    'disk=["format=raw,vdev=hda,access=rw,backendtype=phy,script=block-testbed,target=/dev/loop7"]'
echo "xl create: status $?"
xl list
listen net 'net0 mac=.*'
echo "whom dom0's kernel (10.77.1.1, 02:00:00:77:00:01) has heard on the bridge:"
grep demo /proc/net/arp

part destroy
xl destroy hvm && xl destroy net
echo "xl destroy: status $?"
settle
losetup -d /dev/loop7
ip link set demo down
brctl delbr demo
xl list
ours
nodes > /tmp/after
diff /tmp/before /tmp/after && echo "xenstore: $(wc -l < /tmp/after) nodes, the same as before"
part end
