#!/bin/busybox sh
# /init of the Linux guest: loads the drivers, says what it sees in lines that begin with LAB, and powers off.
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
echo "LAB uuid $($b cat /sys/hypervisor/uuid)"
$b dmesg | $b grep -iE "platform pci|unplug|blacklisted" | while read l; do echo "LAB dmesg $l"; done
for m in $($b cat /lib/order); do $b insmod /lib/$m; done
$b sleep 2
for d in /sys/bus/pci/devices/*; do echo "LAB pci ${d##*/} $($b cat $d/vendor) $($b cat $d/device)"; done
for d in /sys/block/*; do echo "LAB block ${d##*/} $($b readlink $d)"; done
for d in /sys/class/net/*; do echo "LAB net ${d##*/} $($b readlink $d)"; done
echo "LAB done"
while $b grep -q lab.stay /proc/cmdline; do $b sleep 2; echo "LAB up $($b cut -d. -f1 /proc/uptime)"; done
$b poweroff -f
