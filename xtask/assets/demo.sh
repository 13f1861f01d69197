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

part xen
xl info | grep -E '^(host|release|xen_version|virt_caps|total_memory)'
nodes > /tmp/before

part create
xl create /etc/xen/hvm.cfg
echo "xl create: status $?"

part list
xl list

part guest
mkfifo /tmp/keys
sleep 1000 > /tmp/keys &
holder=$!
timeout 120 xl console hvm < /tmp/keys | sed '/alive second=2/q'
kill $holder

part qmp
ours
echo "libxl asks (xl qemu-monitor-command hvm 'info status'):"
xl qemu-monitor-command hvm 'info status'
domid=$(xl domid hvm)
echo "a person asks (stubdm-run qmp $domid query-version):"
stubdm-run qmp "$domid" query-version

part destroy
xl destroy hvm
echo "xl destroy: status $?"
for second in 1 2 3 4 5 6 7 8 9 10; do
    [ "$(xl list | wc -l)" -gt 2 ] || [ -n "$(ours)" ] || break
    sleep 1
done
xl list
ours
nodes > /tmp/after
diff /tmp/before /tmp/after && echo "xenstore: $(wc -l < /tmp/after) nodes, the same as before"
part end
