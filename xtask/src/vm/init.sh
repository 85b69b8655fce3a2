#!/bin/sh
# The guest's first process. Lines for each test, and the end, are appended. If it ends early, the kernel panics, and no
# line says that all is well.
export PATH=/usr/bin:/bin RUST_BACKTRACE=1
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
# The second serial port is the tests' alone: lines of the kernel never cut one in two.
exec >/dev/ttyS1 2>&1 </dev/null
mount -t tmpfs none /run
mount -t bpf none /sys/fs/bpf
for module in /modules/*; do
    insmod "$module" || exit 1
done
echo "@NONCE@ kernel $(uname -v)"
