# mqvae completion, for bash and zsh: eval "$(mqvae completion)", or a file that the shell reads.
if [ -n "${ZSH_VERSION-}" ]; then
  autoload -U +X compinit && compinit -u
  autoload -U +X bashcompinit && bashcompinit
fi
_mqvae() {
  local word="${COMP_WORDS[COMP_CWORD]}" words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="@commands@"
  else
    case "${COMP_WORDS[1]}:$word" in
@cases@
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _mqvae mqvae
