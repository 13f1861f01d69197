# Debian's store clients at work below one folder. What it prints must not depend on which daemon answers.
# XENSTORED_PATH says which.
T=/xen-testbed-clients
run() {
    echo "\$ $*"
    "$@" 2>&1
    echo "status $?"
}

run xenstore-exists $T
run xenstore-read $T/none
run xenstore-write $T/a one $T/b/c two $T/empty ''
run xenstore-read $T/a
run xenstore-read -p $T/a $T/b/c $T/b
run xenstore-read $T/a $T/none $T/b/c
run xenstore-read -R $T/a
run xenstore-exists $T/a
run xenstore-exists $T/a $T/none
run xenstore-list $T
run xenstore-list -p $T
run xenstore-list $T/none
run xenstore-ls $T
run xenstore-ls -f $T
run xenstore-ls -p $T
run xenstore-ls -f -p $T

# Odd names and values: what the clients escape, and what no daemon may accept.
run xenstore-write $T/odd 'tab	and "quotes" and \ and newline
end'
run xenstore-read $T/odd
run xenstore-read -R $T/odd
run xenstore-ls $T
run xenstore-write -R $T/raw '\x00\x01\xff'
run xenstore-read $T/raw
run xenstore-ls -f $T
run xenstore-write "$T/with space" x
run xenstore-write "$T//double" x
run xenstore-write $T/trailing/ x
run xenstore-write "$T/ümlaut" x
run xenstore-write "$T/@-_:" x
run xenstore-read /
run xenstore-read ''
run xenstore-read '@releaseDomain'
run xenstore-read xen-testbed-relative
long=$(printf '%1000s' '' | tr ' ' a)
# From 4.20 on the length of a path is a quota, which xenstored does not apply to dom0; ours is like 4.17's.
grep -q 4.17 /etc/xen/release && run xenstore-write $T/$long$long$long x
run xenstore-write $T/$long x
run xenstore-read $T/$long
run xenstore-rm $T/$long
value=$(printf '%4000s' '' | tr ' ' v)
run xenstore-write $T/long "$value"
run xenstore-read $T/long
run xenstore-write $T/long "$value$value"

# Rights: shown, set, inherited, and those that make no sense.
run xenstore-chmod $T/a n0 r7 w8 b9
run xenstore-ls -p $T
run xenstore-chmod -r $T/b n3 r4
run xenstore-ls -f -p $T
run xenstore-chmod -u $T/b/c r5
run xenstore-ls -f -p $T
run xenstore-chmod $T/a x0
run xenstore-chmod $T/a r
run xenstore-chmod $T/none r0
run xenstore-write $T/b/c/inherits x
run xenstore-ls -f -p $T/b

# More children than one message can list.
k=0
while [ $k -lt 100 ]; do
    xenstore-write $T/many/child-number-$k-with-a-name-that-fills-a-message-sooner $k
    k=$((k + 1))
done
run xenstore-list $T/many
run xenstore-ls -f $T/many

# Watches: the first event, and one for each change, in order.
watch() {
    echo "\$ xenstore-watch $*"
    : >/run/store-watch
    xenstore-watch "$@" >/run/store-watch 2>&1 &
    until [ -s /run/store-watch ]; do usleep 20000; done
}
ended() {
    wait $!
    echo "status $?"
    cat /run/store-watch
    rm /run/store-watch
}
watch -n 4 $T/w
xenstore-write $T/w/x 1
xenstore-write $T/w 2
xenstore-rm $T/w
ended
watch -n 3 $T/v $T/w
xenstore-write $T/w 3
ended
run xenstore-watch -n 1 '@introduceDomain'
run xenstore-watch -n 1 "$T/not valid"

# Removal, with the empty folders above it or without.
run xenstore-write $T/deep/er/est x
run xenstore-rm -t $T/deep/er/est
run xenstore-list $T
run xenstore-rm $T/none
run xenstore-rm $T/a $T/b
run xenstore-ls -f $T
run xenstore-rm /

# Xen's own test of a store. It prints how long each of its operations took, which is its daemon's own affair.
echo '$ test-xenstore'
test-xenstore -i 3 >/run/store-test 2>&1
echo "status $?"
sed 's/:.*ns.*$/: ok/' /run/store-test
rm /run/store-test
run xenstore-rm $T
run xenstore-exists $T
