"""Links from assets to their source code."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg


def with_code_references(
    assets: Sequence[dg.AssetsDefinition], source_url: str | None
) -> list[dg.AssetsDefinition]:
    """Return the assets, each with a link to its code.

    Args:
        assets: to be linked.
        source_url: page of the repository's folder at GitHub or GitLab, ``…/tree/BRANCH``. None
            links to the files of this machine.
    """
    linked = dg.with_source_code_references(assets)
    if source_url is not None:
        repository, _, branch = source_url.partition("/tree/")
        package = Path(__file__).parents[1]
        linked = dg.link_code_references_to_git(
            linked,
            git_url=repository.removesuffix("/-"),
            git_branch=branch,
            file_path_mapping=dg.AnchorBasedFilePathMapping(
                local_file_anchor=package / "__init__.py",
                file_anchor_path_in_repository=f"{package.name}/__init__.py",
            ),
        )
    return [asset for asset in linked if isinstance(asset, dg.AssetsDefinition)]
