"""Image-text retrieval of an encoder pair on a captioned source, language by language."""

from __future__ import annotations

from models.encoder import Encoder
from models.errors import SourceError
from models.metrics import retrieval_recall
from models.sources.embedded import Collected, embed_texts

KS = (1, 5, 10)


def evaluate_retrieval(encoder: Encoder, collected: Collected) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 both ways for each language of the captions.

    Every language is measured on its own captions against all pictures that have one in it.

    Returns:
        {language: {`image_retrieval_recall@k`, `text_retrieval_recall@k`, `pictures`, `texts`}}

    Raises:
        SourceError: no captions at all, so that there is nothing to measure.
    """
    if not collected.captions:
        raise SourceError(
            "the source holds no captions to retrieve with",
            code="no-captions",
            hint="name the field they are in: --text-field captions.en",
        )
    results = {}
    for language in collected.languages():
        texts, owners = collected.of_language(language)
        kept = sorted(set(owners))
        position = {owner: at for at, owner in enumerate(kept)}
        recall = retrieval_recall(
            collected.image_ND[kept],
            embed_texts(encoder, texts),
            [position[owner] for owner in owners],
            KS,
        )
        results[language] = {**recall, "pictures": len(kept), "texts": len(texts)}
    return results
