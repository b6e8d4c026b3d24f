"""The cache folder: whatever lies in it is loaded as code, so nobody else may write to it."""

import os
import stat

import pytest

from kernels import cache

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows keeps LOCALAPPDATA private by itself")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """-> the two candidates, the one below the cache home and the one below the folder for temporary files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home" / "wigglegpt", tmp_path / f"wigglegpt-{os.getuid()}"


def test_the_folder_is_made_for_this_user_alone(folders):
    assert cache.private_folder() == folders[0]
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_folder_that_others_can_write_to_is_passed_over(folders, mode):
    cache.private_folder().chmod(mode)
    assert cache.private_folder() == folders[1]


def test_a_link_is_no_private_folder(folders, tmp_path):
    cache.private_folder().chmod(0o777)
    folders[1].symlink_to(tmp_path)
    assert cache.private_folder() is None
