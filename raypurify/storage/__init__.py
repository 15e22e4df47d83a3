"""Files behind any URL. The functions of ``files`` can be imported from here.

``files`` writes whole files and tables, ``s3`` is S3 with retries, ``retries`` says which failures are tried again,
``conditional`` writes that can lose, ``checkpoints`` folders of weights, ``published`` text without credentials;
``bounded`` keeps and sorts on a disk what does not fit in memory; ``archives`` reads tars past damage.
"""

from raypurify.storage.files import (
    CHANGE_TIMES,
    REQUESTS_AT_ONCE,
    SUCCESS,
    UNWRITABLE,
    absolute,
    clear,
    draft_beside,
    exists,
    filesystem,
    is_draft,
    is_local,
    is_success,
    is_web,
    join,
    list_files,
    mark_success,
    on_store,
    protocols,
    read_bytes,
    read_json,
    read_many,
    read_table,
    read_tables,
    remove,
    remove_drafts,
    replacing,
    stem,
    times_written,
    with_columns,
    without_query,
    write_bytes,
    write_file,
    write_json,
    write_table,
)
