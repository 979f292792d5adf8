"""Retrieval scores, re-ranking, calibration and cluster quality, usable alone."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "retrieval": ["as_float64", "row_blocks", "as_table", "check_numbers", "check_features", "check_same_width",
        "check_integers", "unit_distances", "pair_distances", "match_positions", "match_scores", "RetrievalScores",
        "evaluate_distances", "product_type", "unit_gallery", "product_slack", "split_product", "evaluate_retrieval",
        "bootstrap_interval"],
    "reranking": ["rerank", "expand_queries"],
    "calibration": ["reliability_bins", "expected_calibration_error", "pseudo_label_correct", "pseudo_label_ece"],
    "clusters": ["cluster_quality", "same_camera_neighbour_rate", "same_camera_chance"],
})
