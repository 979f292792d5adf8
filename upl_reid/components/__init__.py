"""The parts of the methods, usable alone: encoder, clustering, uncertainty, mixup, memory, losses, SRMO."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "encoder": ["SHAPES", "IBN_A", "DEIT", "Shape", "token_grid", "conv_stem", "transformer_blocks", "StemViT",
        "compute_dtype", "low_precision", "widen_norm_input", "Encoder", "FlipAverage", "IBN", "use_ibn",
        "split_norms", "misfits", "patch_positions", "load_deit", "read_weights", "pretrained_state", "load_timm",
        "build_body", "build_encoder", "map_and_output", "feature_map", "parameter_groups", "cosine_restarts",
        "make_ema", "update_ema", "forward_cost"],
    "neighbours": ["finite_rows", "unit_rows", "less_equal", "true_positions", "sort_values", "smallest_columns",
        "exact_neighbours", "search_ivf", "approximate_neighbours", "nearest_images", "reciprocal_sets",
        "neighbour_weights", "without_smallest", "candidate_pairs", "overlap_distance", "jaccard_distance"],
    "clustering": ["relabel_consecutive", "check_dbscan", "pairs_within", "dbscan", "kmeans_labels", "cluster_sums",
        "clustered_rows", "silhouette_samples", "check_camids", "camera_center", "camera_dbscan", "check_labels",
        "cluster_centroids", "merge_component", "merge_across_cameras", "cluster_camids", "group_images"],
    "label_choice": ["split_dimensions", "cross_camera_agreement", "view_agreement", "choose_clustering"],
    "uncertainty": ["entropy", "uncertainty_weight", "Mixture", "to_float64", "log_gaussian", "m_step", "check_fit",
        "fit_mixture", "fit_components", "effective_dimension", "posterior_scale", "soft_labels", "hard_labels",
        "centroid_log_probabilities"],
    "mixup": ["sample_lambda", "choose_among", "choose_partners", "mixed_weight", "mix"],
    "memory": ["cross_camera_masks", "check_contrast", "cross_camera_info_nce", "queue_size", "KeyBuffers",
        "MemoryBank", "check_batch", "ClusterMemory", "move_vectors"],
    "losses": ["weighted_mean", "soft_cross_entropy", "hardest_pairs", "pair_distance", "triplet_references",
        "weighted_triplet", "softmax_triplet", "check_centers", "center_loss", "updated_centers",
        "supervised_contrastive"],
    "srmo": ["LossWeights", "loss_slopes", "gradient_at", "meta_gradient", "entropy_slope", "check_options",
        "SRMOState", "SRMO"],
})
