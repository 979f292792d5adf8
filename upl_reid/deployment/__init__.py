"""A trained model at work: embedder, gallery, match calibration, ONNX, and a check without labels."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "adaptation_check": ["LIMITS", "partition_stability", "cross_camera_share", "camera_bias", "keeps_cluster",
        "effective_rank", "random_cosine", "quality_of", "warnings_of", "run_quality", "quality_in_words"],
    "match_calibration": ["PARSE_ERRORS", "RATES", "DOUBT", "GALLERY_SIZES", "Calibration", "rate_interval",
        "rate_in_words", "draw_pairs", "shares_above", "fit_calibration", "cluster_images", "measure_thresholds"],
    "embedder": ["CHANNEL_ORDER", "as_pixels", "check_facts", "build_model", "facts_of", "EmbedderWeights",
        "EmbedderFile", "default_batch", "Embedder", "calibrate_run"],
    "gallery": ["EXACT", "KNOWN", "PAGE_MARK", "unit_vectors", "sample_rows", "GrowingArray", "pad_hits",
        "best_of_all", "best_of_candidates", "principal_axes", "cell_centres", "empty_index", "index_codebook",
        "ivf_candidates", "cell_ranks", "checked_name", "one_each", "EmptyRows", "GalleryRows", "GalleryColumns",
        "GalleryAppend", "GalleryTable", "GalleryNeighbours", "GalleryTruth", "GalleryTuning", "GalleryIndex",
        "GrowingGallery", "find_named", "ShrinkingGallery", "Hits", "GalleryCameras", "GalleryNearest",
        "GallerySearch", "Gallery", "certainty", "short_name", "draw_hits", "thumbnail", "page_text", "page_figure",
        "hits_page"],
    "onnx_export": ["OPSETS", "GRAPH_OPSETS", "CARD", "FromBytes", "check_opset", "onnx_opset", "export_onnx",
        "cell_text", "describe_crops", "model_card"],
    "timm_export": ["fold_neck", "timm_state", "export_timm"],
})
