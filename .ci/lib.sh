# What .ci/run and .ci/canary share; they source it.

# The tests that are run with the lowest and the newest releases too: the model, sampling, the pipeline, the trainer, and
# one file for each extra, so that every floor in setup.py has been imported and used.
SUBSET=(
    configuration modeling moe image_tokenizer face_encoder image_processing processing generation sampling scheduler
    pipeline lora trainer losses cli packaging
    serving demo face_sources data_commands metrics convert_face_encoder publish
)

say() { printf '\n== %s\n' "$*"; }

# test_files NAME...: their paths
test_files() { printf 'tests/test_%s.py\n' "$@"; }

# readme_block NAME: the fenced block that follows the line `<!-- NAME -->` in README.md
readme_block() {
    awk -v marker="<!-- $1 -->" '
        $0 == marker { wanted = 1; next }
        wanted && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }
    ' README.md
}

# copy_repository FROM TO: all that git does not ignore, as a newcomer would get it
copy_repository() {
    git -C "$1" -c safe.directory="$1" ls-files -z --cached --others --exclude-standard --deduplicate |
        (cd "$1" && while IFS= read -r -d '' file; do
            if [[ -e $file ]]; then printf '%s\0' "$file"; fi
        done) | tar --create --null --directory="$1" --files-from=- | tar --extract --directory="$2"
}

# find_recordings REPOSITORY: tensors recorded from the original Show-o, where they lie beside the repository; without
# them its tests are skipped
find_recordings() {
    local recordings=$1/../shared/fixtures
    if [[ -z ${UNIF2ACE_FIXTURES:-} && -d $recordings ]]; then
        UNIF2ACE_FIXTURES=$(cd "$recordings" && pwd)
        export UNIF2ACE_FIXTURES
    fi
}
