"""What a registry answers when it refuses: HTTP status, Confluent's error code and a sentence."""

from __future__ import annotations


class RegistryError(Exception):
    """A refusal. `status` is HTTP's, `code` Confluent's, the text goes to the client as `message`."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def subject_not_found(subject: str) -> RegistryError:
    return RegistryError(404, 40401, f"Subject '{subject}' not found.")


def version_not_found(version: int) -> RegistryError:
    return RegistryError(404, 40402, f"Version {version} not found.")


def schema_not_found(what: object = "") -> RegistryError:
    return RegistryError(404, 40403, f"Schema {what} not found" if what else "Schema not found")


def subject_soft_deleted(subject: str) -> RegistryError:
    return RegistryError(
        404, 40404, f"Subject '{subject}' was soft deleted. Set permanent=true to delete permanently"
    )


def subject_not_soft_deleted(subject: str) -> RegistryError:
    return RegistryError(
        404, 40405, f"Subject '{subject}' was not deleted first before being permanently deleted"
    )


def version_soft_deleted(subject: str, version: int) -> RegistryError:
    return RegistryError(
        404,
        40406,
        f"Subject '{subject}' Version {version} was soft deleted. Set permanent=true to delete permanently",
    )


def version_not_soft_deleted(subject: str, version: int) -> RegistryError:
    return RegistryError(
        404,
        40407,
        f"Subject '{subject}' Version {version} was not deleted first before being permanently deleted",
    )


def no_subject_config(subject: str) -> RegistryError:
    return RegistryError(
        404, 40408, f"Subject '{subject}' does not have subject-level compatibility configured"
    )


def no_subject_mode(subject: str) -> RegistryError:
    return RegistryError(404, 40409, f"Subject '{subject}' does not have subject-level mode configured")


def incompatible(subject: str, reasons: list[str]) -> RegistryError:
    details = "; ".join(reasons)
    return RegistryError(
        409,
        40901,
        f'Schema being registered is incompatible with an earlier schema for subject "{subject}",'
        f" details: [{details}]",
    )


def invalid_schema(reason: str) -> RegistryError:
    return RegistryError(422, 42201, f"Invalid schema: {reason}")


def invalid_version(version: object) -> RegistryError:
    return RegistryError(
        422,
        42202,
        f"The specified version '{version}' is not a valid version id. Allowed values are between [1, 2^31-1]"
        ' and the string "latest"',
    )


def invalid_level(level: object, levels: list[str]) -> RegistryError:
    return RegistryError(
        422, 42203, f"Invalid compatibility level {level!r}. Valid values are {', '.join(levels)}"
    )


def invalid_mode(mode: object, modes: list[str]) -> RegistryError:
    return RegistryError(422, 42204, f"Invalid mode {mode!r}. Valid values are {', '.join(modes)}")


def not_permitted(reason: str) -> RegistryError:
    return RegistryError(422, 42205, reason)


def reference_exists(subject: str, version: int) -> RegistryError:
    return RegistryError(
        422, 42206, f"One or more references exist to the schema of subject '{subject}' version {version}"
    )


def id_does_not_match(schema_id: int) -> RegistryError:
    return RegistryError(
        422, 42207, f"Id {schema_id} belongs to another schema, or this schema has another id"
    )


def invalid_subject(subject: str) -> RegistryError:
    return RegistryError(422, 42208, f"The specified subject '{subject}' is not a valid subject name")


def unprocessable(reason: str) -> RegistryError:
    return RegistryError(422, 422, reason)


def store_failure(reason: str) -> RegistryError:
    return RegistryError(500, 50001, f"The change was not stored: {reason}")
