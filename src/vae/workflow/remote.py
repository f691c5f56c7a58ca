"""`make remote`: where `dvc push` stores data, weights and what else git does not track, for `dvc pull` elsewhere."""

from urllib.parse import urlsplit

from dvc.config import Config, ConfigError

from vae.errors import DataError, hide_passwords, one_line
from vae.workflow.command_line import ArgumentParser, errors_in_one_line

NAME = "storage"


def set_remote(url: str, endpoint: str | None) -> None:
    """Make `url` DVC's default remote, in `.dvc/config`, instead of one that was set before.

    Git shares that file with everyone who clones. Raises DataError if a URL has a password, or if DVC refuses it.
    """
    for given in filter(None, (url, endpoint)):
        if urlsplit(given).password is not None:
            raise DataError(
                f"{hide_passwords(given)} has a password, which git would share with everyone: leave it out "
                "(docs/team.md says where credentials are kept)"
            )
    try:
        with Config.from_cwd(validate=False).edit("repo") as config:
            config["remote"][NAME] = {"url": url} | ({"endpointurl": endpoint} if endpoint else {})
            config["core"]["remote"] = NAME
    except ConfigError as error:
        raise DataError(f"DVC can't use {url} as a remote: {one_line(error)}") from None
    print(f"default remote: {url}\nshare it: git add .dvc/config; git commit; dvc push")


if __name__ == "__main__":
    with errors_in_one_line("nothing was changed"):
        parser = ArgumentParser(__doc__)
        parser.add_argument("--url", required=True, help="/a/folder, s3://bucket/path or ssh://user@host/path")
        parser.add_argument("--endpoint", metavar="URL", help="of a server other than Amazon's that speaks S3")
        given = parser.parse_args()
        set_remote(given.url, given.endpoint)
