# Completion for bash and zsh: keys, their values, options. For this shell:
#   source completion.sh

_experiment_starter() {
    local python="${COMP_WORDS[0]}" program="${COMP_WORDS[1]}" words="" prefix="" key=""
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" root
    root=$(dirname -- "$program")
    # bash splits words at '=' and completes what follows, zsh doesn't.
    if [ "$word" = "=" ]; then
        word="" key="$before"
    elif [ "$before" = "=" ]; then
        key="${COMP_WORDS[COMP_CWORD - 2]}"
    elif [ "${word%%=*}" != "$word" ]; then
        key="${word%%=*}" prefix="${word%%=*}="
    fi
    case "${program##*/}:$before:$word" in
    train.py:--list:*) words="models datasets optimizers schedules averages losses metrics" ;;
    train.py:*:--*) words="--help --json --keys --list --print-config" ;;
    train.py:*)
        if [ -n "$key" ]; then
            words=$("$python" "$root/src/config/completion.py" "$key" "$prefix" 2>/dev/null)
        elif [ "$COMP_CWORD" -gt 2 ]; then
            words=$("$python" "$root/src/config/completion.py" 2>/dev/null)
        fi
        ;;
    submit_multiple.py:-s:* | submit_multiple.py:--script:*)
        words="local $(cd "$root" && echo *.sh)"
        ;;
    *.py:*:--*)
        words=$("$python" "$program" --help 2>/dev/null | grep -o -e '--[a-z][a-z-]*')
        ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}

if [ -n "$ZSH_VERSION" ]; then
    autoload -U +X compinit bashcompinit && compinit -u && bashcompinit
fi
# Whatever else python is given is completed as before: by names of files.
complete -o bashdefault -o default -F _experiment_starter python python3
