runtime = dict(seed=0, device="auto", log_interval=10, checkpoint_interval=500, keep_checkpoints=2)
