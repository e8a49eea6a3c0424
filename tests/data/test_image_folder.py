import pytest
from PIL import Image

from asvr.data.image_folder import ImageFolder
from asvr.data.images import open_image
from asvr.data.refusals import Refused


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "sub/a.JPG", "sub/c.webp", "a.bmp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (4, 4)).save(path)
    return tmp_path


def test_pictures_are_found_below_and_sorted(folder):
    dataset = ImageFolder(root=str(folder))
    names = ["a.bmp", "b.png", "sub/a.JPG", "sub/c.webp"]
    assert [dataset.record(i) for i in range(len(dataset))] == [dict(image=name) for name in names]
    assert [source for _, source in dataset.images()] == [folder / name for name in names]
    assert len({key for key, _ in dataset.images()}) == 4
    assert len(ImageFolder(root=str(folder), limit=2)) == 2


def test_an_unreadable_picture_is_named(folder):
    (folder / "z.png").write_bytes(b"broken")
    *_, (_, source) = ImageFolder(root=str(folder)).images()
    with pytest.raises(Refused, match="z.png"):
        open_image(source)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        ImageFolder(root=str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        ImageFolder(root=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="limit=0"):
        ImageFolder(root=str(tmp_path), limit=0)
