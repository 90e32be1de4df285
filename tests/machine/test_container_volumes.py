"""Volumes of booted machines: block devices that are attached, detached, kept or ended with the instance, and that can be full."""

from __future__ import annotations

import pytest

FORMAT_AND_WRITE = "sudo mkfs.ext4 -q {0} && sudo mount {0} /mnt && echo kept | sudo tee /mnt/f && sudo umount /mnt"


@pytest.mark.slow
def test_a_volume_moves_from_one_machine_to_the_next(machines, eventually):
    """The kept disk of a student outlives the spot instance it was attached to."""
    volume = machines.disk("work", survives=True)
    by_id = f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume.volume_id.replace('-', '')}"
    one = machines.boot().wait_for_ssh()

    one.machine.attach(volume)
    eventually(lambda: one.ssh(f"test -b {by_id}").returncode == 0)
    rights = one.run("stat -c '%A %G' /dev/nvme1n1")
    one.run(FORMAT_AND_WRITE.format("/dev/nvme1n1"))
    one.machine.detach(volume.volume_id)
    eventually(lambda: one.ssh("test -e /dev/nvme1n1").returncode == 1)
    links = one.run("ls /dev/disk/by-id")
    one.machine.discard()
    other = machines.boot(disks=(*machines.birth().disks, volume)).wait_for_ssh()

    assert (rights, links) == ("brw-rw---- disk", "")
    assert other.run(f"sudo mount {by_id} /mnt && cat /mnt/f") == "kept"


@pytest.mark.slow
def test_a_volume_survives_a_power_cut_while_it_is_mounted(machines):
    """A spot instance ends without a word to its file systems; what was synced is there afterwards."""
    volume = machines.disk("work", survives=True)
    booted = machines.boot(disks=(*machines.birth().disks, volume)).wait_for_ssh()
    booted.run(
        "sudo mkfs.ext4 -q /dev/nvme1n1 && sudo mount /dev/nvme1n1 /mnt"
        " && echo kept | sudo tee /mnt/f && sync"
    )

    booted.machine.cut()
    booted.wait_until_off()
    booted.machine.power_on()
    booted.wait_for_ssh()

    assert booted.run("sudo mount /dev/nvme1n1 /mnt && cat /mnt/f") == "kept"


@pytest.mark.slow
def test_only_kept_volumes_outlive_the_instance(machines, eventually):
    """`DeleteOnTermination` decides; a kept volume goes when it is deleted itself."""
    folder = machines.kind.folder / "volumes"
    kept, ended = machines.disk("kept", survives=True), machines.disk("ended")
    root = machines.disk("root", is_root=True)
    booted = machines.boot(disks=(root, kept, ended)).wait_for_ssh()

    booted.machine.discard()
    eventually(lambda: not (machines.kind.folder / "machines" / booted.birth.instance_id).exists())
    left = {file.stem for file in folder.iterdir()} & {
        disk.volume_id for disk in (root, kept, ended)
    }
    machines.kind.delete_volume(kept.volume_id)
    machines.kind.delete_volume("vol-unknown")

    assert left == {kept.volume_id}
    assert not (folder / f"{kept.volume_id}.img").exists()


@pytest.mark.slow
def test_a_root_disk_has_its_size_and_can_be_full(machines):
    """The agent must save and end the machine with a full disk too, and that has to be tried on a real one."""
    booted = machines.boot().wait_for_ssh()

    size_gib = booted.run("df --output=size -BG / | tail -1")
    full = booted.ssh("fallocate -l 9G big; head -c 10G /dev/zero > more")

    assert size_gib in ("7G", "8G")
    assert "No space left on device" in full.stderr
