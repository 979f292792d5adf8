"The names that other people's code imports, and the parameters that it may give by name."
import importlib, inspect

import pytest

CONTRACT = {
    "data": ["Split(paths, pids, camids)", "Domain(name, train, query, gallery)", "load_domain(name, root)",
             "split_identities(split, fraction, seed)",
             "domain_statistics(*domains)", "write_domain(name, root, train_ids, test_ids, cameras, size, seed)"],
    "evaluation": ["evaluate_retrieval(query, gallery, query_pids, query_camids, gallery_pids, gallery_camids, ranks)",
                   "evaluate_distances(query_pids, query_camids, gallery_pids, gallery_camids, ranks)",
                   "rerank(query, gallery, k1, k2, lambda_value)",
                   "expected_calibration_error(confidence, correct, n_bins)",
                   "cluster_quality(features, labels, pids, camids)", "RetrievalScores(mAP, mINP, cmc, skipped)"],
    "components": ["jaccard_distance(features, k1, k2, max_distance)", "dbscan(distance, eps, min_samples)",
                   "camera_dbscan(features, camids)", "camera_center(features, camids)",
                   "merge_across_cameras(centroids, camids, threshold)", "entropy(p)",
                   "uncertainty_weight(p, alpha)", "soft_labels", "mix(f_i, f_j, y_i, y_j, w_i, w_j, lam)",
                   "cross_camera_info_nce(anchors, labels, camids, keys, key_labels, key_camids, tau)", "MemoryBank",
                   "soft_cross_entropy(logits, soft, weight)",
                   "weighted_triplet(features, labels, weight, margin)", "meta_gradient", "SRMO", "build_encoder"],
    "methods.p2lr": ["label_uncertainty(features, centroids, labels, temperature, epsilon)",
                     "selected_fraction(step, steps, p0, h)"],
    "methods.cgc": ["confidence_guided_centroids(features, labels, silhouettes, threshold)",
                    "confidence_guided_labels(features, centroids, labels, beta)"],
    "methods.mspl": ["camera_normalize(features, camids)", "select_clusters(labels, camids, min_size)"],
    "methods.inclr": ["inaccuracy(student, teacher, centroids, temperature)", "joint_distance(global_, parts, kappa)"],
    "training": ["Method", "PseudoLabels(hard, soft, weight, centroids)", "Batch", "Budget", "register",
                 "pretrain", "adapt"],
    "experiments": ["RunConfig(preset, source, target, method, method_args, seed)", "PRESETS", "get_run(config)"],
    "deployment": ["Embedder", "Gallery", "export_onnx"],
}
ENTRIES = [(module, entry) for module, entries in CONTRACT.items() for entry in entries]


@pytest.mark.parametrize("module, entry", ENTRIES)
def test_a_name_of_the_contract_is_there_with_its_parameters(module, entry):
    name, _, listed = entry.rstrip(")").partition("(")
    found = getattr(importlib.import_module(f"upl_reid.{module}"), name)
    if not listed: return
    parameters = inspect.signature(found).parameters
    missing = [p for p in listed.split(", ") if p.lstrip("*") not in parameters]
    assert not missing, \
        f"upl_reid.{module}.{name} has no parameter {', '.join(missing)}; it has {', '.join(parameters)}"


@pytest.mark.parametrize("name", ["query_pids", "query_camids", "gallery_pids", "gallery_camids"])
@pytest.mark.parametrize("function", ["evaluate_retrieval", "evaluate_distances"])
def test_identities_and_cameras_are_given_by_name_only(function, name):
    signature = inspect.signature(getattr(importlib.import_module("upl_reid.evaluation"), function))
    assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
