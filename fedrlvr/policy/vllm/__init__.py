"""The sampler `engine.sampler = "vllm"`: a vLLM server draws the responses (docs/vllm.md).

`sampler` has the class, `server` the process that fedrlvr starts, `http` the requests and the checks of their replies.
Nothing of vLLM is imported: its torch and transformers are others, in an environment of its own.
"""
