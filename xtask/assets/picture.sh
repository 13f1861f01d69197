# The picture's job in dom0: a guest with a screen, and what it shows once it runs. The file's bytes
# come as hexadecimal digits, because a console passes on text alone.
xl create /etc/xen/hvm.cfg 'vnc=1' >&2 || exit 1
[ -p /tmp/keys ] || mkfifo /tmp/keys
sleep 1000 > /tmp/keys &
timeout 120 xl console hvm < /tmp/keys | grep -m1 'alive second=2' >&2 || exit 1
kill $!
stubdm-run screenshot "$(xl domid hvm)" /tmp/screen.png >&2 || exit 1
xl destroy hvm
echo '@@picture'
od -An -v -tx1 /tmp/screen.png
