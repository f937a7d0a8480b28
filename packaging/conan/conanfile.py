# Conan 2: conan create packaging/conan. The library alone; nlohmann_json and Eigen are headers it is built with.
import re
from pathlib import Path

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Sale(ConanFile):
    name = "sale"
    description = "Sparse attention by low-bit estimation for long prompts"
    license = "Apache-2.0"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "cuda": [True, False]}
    default_options = {"shared": False, "cuda": False}
    package_type = "library"
    generators = "CMakeDeps"

    def set_version(self):
        header = (Path(self.recipe_folder).parents[1] / "include/sale/sale.h").read_text()
        self.version = ".".join(re.search(rf"SALE_VERSION_{p} (\d+)", header)[1] for p in ("MAJOR", "MINOR", "PATCH"))

    def requirements(self):
        for headers in ("nlohmann_json/[>=3.10 <4]", "eigen/[>=3.4 <4]"):
            self.requires(headers, headers=False, libs=False, visible=False)

    def export_sources(self):
        top = Path(self.recipe_folder).parents[1]
        for part in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*"):
            copy(self, part, top, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        tc = CMakeToolchain(self)
        tc.variables.update(SALE_CLI=False, SALE_TESTS=False, SALE_INSTALL=True, SALE_CUDA="ON" if self.options.cuda else "OFF")
        tc.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder) / "licenses")

    # The package has a CMake configuration of its own.
    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs.append("lib/cmake/sale")
        self.cpp_info.libs = ["sale"]
        if self.settings.os == "Linux":
            self.cpp_info.system_libs = ["pthread", "m"]
