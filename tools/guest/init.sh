#!/bin/busybox sh
# Process 1 of every guest of the lab. Words of the kernel's command line:
#   dirty=MIB,RATE,MODE,SEED  starts the page dirtier
#   workload=NAME,SEED        mounts the disk and starts a real workload from it
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
  [ -e /modules/$module.ko ] && insmod /modules/$module.ko
done
dirty=0,0,0 workload=
for word in $(cat /proc/cmdline); do
  case $word in
    dirty=*) dirty=${word#dirty=} ;;
    workload=*) workload=${word#workload=} ;;
  esac
done
echo BOOTED
if [ -n "$workload" ]; then
  tries=0
  while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do usleep 100000; tries=$((tries + 1)); done
  mount -t ext4 /dev/vda /mnt && exec switch_root /mnt /workload.sh "$workload"
  echo "BUG: no root image"
fi
exec dirty $(echo "$dirty" | tr , ' ')
