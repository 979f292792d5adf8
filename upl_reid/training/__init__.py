"""The method protocol, the training loop, and several processes."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "method": ["EXTRAS", "METHODS", "check_label_part", "check_soft_rows", "PseudoLabels", "Batch", "Budget",
        "check_budget", "own_budget", "MethodState", "constructor_parameters", "MethodArguments", "MethodNetworks",
        "MethodLabels", "MethodLosses", "Method", "check_relabelled", "check_arguments", "check_values",
        "TrueLabels", "Supervised", "check_name", "check_constructor", "register"],
    "distributed": ["process_count", "process_rank", "all_true", "process_group", "batch_share", "Gather", "Total",
        "full_batch", "is_sharing", "RunningStatistics", "SharedNorm", "SharedBody", "check_norms", "make_shared",
        "share_bodies", "sum_gradients", "all_mean", "average_tensors", "check_agreement"],
    "loop": ["embed_bank", "pack_optimiser", "unpack_optimiser", "pack_labels", "unpack_labels",
        "make_round_optimiser", "pack_state", "unpack_state", "check_features", "make_labels", "set_rates",
        "make_batch", "check_losses", "train_step", "broken_step", "sum_values", "run_epoch", "TrainingState",
        "TrainingRounds", "Training", "fit", "pretrain", "target_links", "check_answering", "adapt"],
})
