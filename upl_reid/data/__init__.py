"""Camera networks: splits, image files, benchmarks, one's own crops, synthetic people, image banks."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "splits": ["integer_column", "track_column", "time_column", "Unlabelled", "selected_rows", "Split", "Domain"],
    "tracks": ["CLOCK", "seconds_of_text", "track_numbers", "walk_times"],
    "decoding": ["FORMATS", "MAX_PIXELS", "TURNS", "upright_rgb", "read_image"],
    "own_crops": ["PICTURE_SUFFIXES", "OTHER_SUFFIXES", "COLUMNS", "MAX_ROWS", "WILDLIFE", "OWN", "MANY_FOLDERS",
        "FEW_PICTURES", "SPLIT_FOLDER", "BY_IDENTITY", "BY_SPLIT", "FEWEST", "raise_faults", "is_file",
        "is_not_utf8", "field_fault", "file_fault", "parse_row", "repeat_fault", "used_columns", "check_header",
        "read_lines", "natural_sort_key", "fixed_number", "identity_numbers", "make_listing", "read_table",
        "walk_folder", "find_images", "ignored_files", "cameras_by_folder", "split_of", "compile_pattern",
        "parse_name", "cameras_by_pattern", "fitting_pattern", "identity_doubt", "split_doubt", "folder_doubt",
        "read_folder", "list_images", "camera_numbers", "check_measurable", "as_domain", "load_folder",
        "write_table", "examine_image", "camera_advice", "size_advice", "count_advice", "pair_advice",
        "check_images", "readable_images", "verdict", "report_in_words"],
    "answers": ["write_answers", "read_answers", "Answers", "find_answers"],
    "benchmarks": ["JUNK", "MARKET", "DUKE", "MSMT_V1", "MSMT_V2", "MSMT_MARKET", "VERI", "CUHK03", "PERSONX",
        "OCCLUDED_DUKE", "MARS", "LAYOUTS", "Part", "Layout", "find_layout", "load_domain", "split_identities",
        "published_statistics", "domain_statistics"],
    "synthetic": ["WARDROBES", "OUTFIT", "LENSES", "VISITS", "Wardrobe", "random_colour", "draw_identity",
        "share_outfit", "Figure", "draw_pattern", "draw_legs", "draw_arms", "draw_head", "sorted_box", "draw_bag",
        "draw_person", "Lens", "draw_light", "at_light", "draw_camera", "draw_background", "apply_photometry",
        "occlude", "render_image", "Network", "Visits", "network_identity", "draw_visit", "write_person",
        "write_people", "check_network", "holds_network", "write_network", "write_domain"],
    "image_bank": ["CGROUPS", "decode_images", "group_spare", "cgroup_free_memory", "free_memory", "scratch_file",
        "choose_home", "ImageBank", "normalise_images", "Augmenter", "make_augmenter", "identity_order",
        "group_by_label", "deal_identities", "plan_batches"],
})
