# Two commands matter: `make demo` runs the main job, `make test` passes the tests.
BUILD ?= build/release
# What `make demo` hands to the program: make demo ARGS="--tokens 32k --backend avx512"
ARGS ?=
# What `make bench` calls the machine it measures
NAME ?= $(shell uname -n)

.PHONY: all demo test bench tidy format clean wheels package llamacpp demo-llamacpp test-llamacpp

all:
	@scripts/setup.sh build
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DSALE_TESTS=OFF >/dev/null
	@cmake --build $(BUILD)

demo: all
	$(BUILD)/cli/sale demo --report build/demo $(ARGS)

test:
	@scripts/setup.sh test
	@scripts/test.sh

# The figures of the README, saved under bench/results with this machine's name.
bench: all
	@bench/cpu $(NAME)

# What `make test` asks of the library, of the programs too.
tidy:
	@scripts/setup.sh test
	@scripts/test.sh tidy_all

# An unmodified llama.cpp in build/llamacpp, from Debian's packages (HOST=pypi: from source), the bundled model as GGUF,
# its calibration, and the backend.
HOST ?= debian
llamacpp: all
	@scripts/llamacpp.sh $(HOST)
	@scripts/gguf.py convert models/tiny-llama-128k build/llamacpp/tiny-llama-128k.gguf
	@SALE_PROGRAM=$(BUILD)/cli/sale scripts/gguf.py calibration models/tiny-llama-128k/calibration.json build/llamacpp/tiny-llama-128k.gguf \
	  build/llamacpp/calibrations >/dev/null

# The same long prompt in llama.cpp without and with SALE: make demo-llamacpp ARGS="--tokens 64k"
demo-llamacpp: llamacpp
	@scripts/llamacpp.py demo $(ARGS)

# What needs llama.cpp, and so is not in `make test`.
test-llamacpp: llamacpp
	@scripts/test-llamacpp.sh

# Wheels for x86-64 and arm64 in build/packages/wheels, from the source distribution; the Debian and Conan packages. Not
# seen to work yet.
wheels:
	@scripts/setup.sh package
	@scripts/package.sh wheels
package:
	@scripts/setup.sh package
	@scripts/package.sh

format:
	@git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' '*.cuh' | xargs clang-format-19 -i

clean:
	rm -rf build
