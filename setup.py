"""The rest stands in pyproject.toml; here, the wheel takes the configs and the tools along."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Put what OpenMMLab's tools look for beside the package into ``slide_mm/.mim``, as MMDetection
    does. An editable install has it all in the clone.
    """

    mim_parts = ("configs", "tools", "model-index.yml")

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self.list_mim_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [
            str(target) for _, target in self.list_mim_files()
        ]

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + [str(source) for source, _ in self.list_mim_files()]

    def list_mim_files(self) -> list[tuple[Path, Path]]:
        """Files of the clone, each with where it goes."""
        paths = [path for part in self.mim_parts for path in [Path(part), *Path(part).rglob("*")]]
        folder = Path(self.build_lib, "slide_mm", ".mim")
        return [
            (path, folder / path)
            for path in sorted(paths)
            if path.is_file() and "__pycache__" not in path.parts
        ]


setup(cmdclass={"build_py": BuildWithConfigs})
