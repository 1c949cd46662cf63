"""Finetuning and layer-reset transfer: which levels carry what is learnt from a backbone."""
