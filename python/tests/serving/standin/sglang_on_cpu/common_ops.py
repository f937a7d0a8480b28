"""In place of sgl_kernel's compiled part, which is of one release of torch and of GPUs: the last of the names under which
sgl_kernel looks for it. Nothing of it is called by SGLang's CPU engine with the torch_native backend."""
