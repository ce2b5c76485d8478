"""Learning identities: captions, views, denoising loss, mapper and trainer of the paper.

Import from the modules; nothing is imported here, so that configurations cost no torch.
"""
