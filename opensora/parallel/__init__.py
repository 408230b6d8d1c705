"""Everything between ranks: the only importer of torch.distributed and colossalai."""
