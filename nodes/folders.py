"""The host's folders of encoders, embeddings, judges and runs, and the names under which it lists files."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import folder_paths
from torch import Tensor

from ..advunlearn.cli.folder_lock import lock_folder
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import TEXT_ENCODER_WEIGHTS, check_name, find_inside

ENCODERS = "text_encoders"  # models/text_encoders, models/clip, output/clip and models/advunlearn (downloads)
FETCHED = pathlib.Path(folder_paths.models_dir) / "advunlearn"
# At the end of the list, so that no default folder changes; the host's CLIP loaders list the downloads too.
folder_paths.add_model_folder_path(ENCODERS, str(FETCHED))
JUDGES = "classifiers"
folder_paths.add_model_folder_path(JUDGES, os.path.join(folder_paths.models_dir, JUDGES))


def list_encoders() -> list[str]:
    """Return the available text encoders: the files that the host lists, and CLIPTextModel folders as "name/".

    A folder with config.json and weights counts as a CLIPTextModel; its weights are not listed separately.
    """
    return sorted({find_encoder_folder(file) or file for file in folder_paths.get_filename_list(ENCODERS)})


def find_encoder_folder(file: str) -> str:
    """Return the name ("a/b/") of the CLIPTextModel folder whose weights a listed file is; "" if there is none."""
    path = pathlib.PurePath(file)
    is_folder = (
        path.name in TEXT_ENCODER_WEIGHTS
        and path.parent.name
        and folder_paths.get_full_path(ENCODERS, str(path.with_name("config.json")))
    )
    return f"{path.parent.as_posix()}/" if is_folder else ""


def find_encoder(name: str) -> pathlib.Path:
    """Return the path of an encoder file, or of the weights in a folder ("name/").

    Raises AdvUnlearnError if there is none.
    """
    files = [name + file for file in TEXT_ENCODER_WEIGHTS] if name.endswith("/") else [name]
    path = next((path for file in files if (path := folder_paths.get_full_path(ENCODERS, file))), None)
    if path is None:
        raise AdvUnlearnError(
            f"encoder {name!r} is not among the text encoders; put it into models/text_encoders and refresh"
        )
    return pathlib.Path(path)


def new_path(name: str, folder: str = "clip", suffix: str = ".safetensors") -> tuple[pathlib.Path, str]:
    """Return a new numbered path in a folder of the output, and the name under which the host will list it.

    Raises AdvUnlearnError for an invalid name.
    """
    check_name(name, folders=True)
    output = folder_paths.get_output_directory()
    where, file, counter, _, _ = folder_paths.get_save_image_path(f"{folder}/{name}", output)
    path = pathlib.Path(where) / f"{file}_{counter:05}_{suffix}"
    return path, str(path.relative_to(pathlib.Path(output) / folder))


def run_folder(name: str) -> pathlib.Path:
    """Return the folder for the checkpoint of a training run. Raises AdvUnlearnError for an invalid name."""
    check_name(name, folders=True)
    return pathlib.Path(folder_paths.get_output_directory()) / "advunlearn" / name


@contextlib.contextmanager
def lock_name(name: str) -> Iterator[pathlib.Path]:
    """Hold the lock of a name under which an encoder is saved; yield its folder, removed if empty.

    Another ComfyUI may have the same output folder. Raises AdvUnlearnError if another process holds the lock, and for
    an invalid name.
    """
    folder = run_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder, "choose another name"):
            yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds the state of a run that can be resumed
            folder.rmdir()


def save_embedding(name: str, embeddings: Mapping[str, Tensor]) -> str:
    """Save token embeddings (k, D) by encoder in the host's folder; return the text that refers to them in a prompt.

    Raises AdvUnlearnError for an invalid name.
    """
    from ..advunlearn.formats.tensors import write_safetensors

    check_name(name)
    folder = pathlib.Path(folder_paths.get_folder_paths("embeddings")[0])
    tensors = {part: rows.detach().float().cpu().contiguous() for part, rows in embeddings.items()}
    write_safetensors(folder / f"{name}.safetensors", tensors, {"format": "pt"})
    return f"embedding:{name}"


def list_judges(kind: str) -> list[str]:
    """Return the folders in models/classifiers that hold a judge of this kind, as relative paths."""
    from ..advunlearn.judges.folders import detect_judge_kind

    names = set()
    for root in folder_paths.get_folder_paths(JUDGES):
        for folder, _, files in os.walk(root, followlinks=True):
            if "config.json" not in files:
                continue
            try:
                if detect_judge_kind(folder) == kind:
                    names.add(pathlib.Path(folder).relative_to(root).as_posix())
            except (AdvUnlearnError, OSError):  # another kind of model, for another node
                continue
    return sorted(names)


def find_judge(name: str) -> pathlib.Path:
    """Return the folder of a judge in models/classifiers, by its name there or by its whole path.

    Raises AdvUnlearnError if it is missing, and for a path outside of the host's folders for classifiers.
    """
    folder = find_inside(name, folder_paths.get_folder_paths(JUDGES), "config.json")
    if folder is None:
        raise AdvUnlearnError(f"judge {name!r} is not in models/{JUDGES}; put its folder there and refresh")
    return folder
