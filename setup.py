"""Builds the native core with CMake and Ninja. Everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        package_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                *("cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build_dir)),
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *os.environ.get("PIXLEAP_CMAKE_ARGS", "").split(),
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", str(build_dir), "--target", "_native"], check=True)
        package_dir.mkdir(parents=True, exist_ok=True)
        [native] = build_dir.glob("_native*.so")
        for library in (native, *build_dir.glob("libscipy_openblas.*")):
            self.copy_file(str(library), str(package_dir / library.name))


setup(
    ext_modules=[Extension("pixleap._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
