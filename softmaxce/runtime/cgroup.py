"""The control groups of this process, by which containers and batch systems limit it. Needs no torch.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/cgroups.html
"""

from pathlib import Path


def cgroup_folders(controller: str, root: Path = Path("/")) -> list[Path]:
    """The folders of this process's cgroups and their ancestors, whose files hold the limits; some may not exist.

    Args:
        controller: of cgroup v1, such as cpu or memory; cgroup v2 has one folder for all.
        root: the folder that holds proc/ and sys/.
    """
    top = root / "sys/fs/cgroup"
    folders = [top, top / controller]  # what a container sees, whatever /proc says of the machine's tree
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # a system without cgroups
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controller in controllers.split(","):
            base = top if number == "0" else top / controller
            own = base / path.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base)]
    return folders
